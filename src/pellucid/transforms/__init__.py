"""Images to images: shape without texture, texture without shape, and some frequencies without the others."""
