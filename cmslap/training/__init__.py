"""Training: from a TOML file and folders of images to weights with their training record."""
