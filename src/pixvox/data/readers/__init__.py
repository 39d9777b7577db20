"""One reader per file format; ``pixvox.data.images`` chooses among them."""
