"""Which models are served: their names, what is loaded of them, and who uses them."""
