"""Sets of images in, figures out."""
