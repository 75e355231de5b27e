"""A page in the browser that shows what a checkpoint makes of images."""
