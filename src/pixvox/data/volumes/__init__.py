"""Images and volumes larger than memory: opened, read region by region, converted."""
