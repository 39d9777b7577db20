"""One lazy array per file format; ``pixvox.data.volumes.open`` chooses among them."""
