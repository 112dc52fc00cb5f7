"""Images to images: shape without texture, texture without shape, and some frequencies without the others.

Each can be differentiated by the images, and takes each image alone: what is random of it comes from `generator`.
"""
