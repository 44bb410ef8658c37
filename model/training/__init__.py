"""Training and evaluation: the commands that make what ships in `weights/`."""
