"""Pellucid: can a classifier be fooled, can its explanation be fooled, and what does it look at?"""
