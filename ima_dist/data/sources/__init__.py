"""The built-in sources of one's own data: images in folders or lists, and files of arrays."""
