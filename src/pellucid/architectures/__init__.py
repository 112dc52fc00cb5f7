"""Architectures: every public function of this package's modules builds a `Network`."""
