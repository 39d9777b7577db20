"""Images and their annotations: readers, datasets, transforms, batches."""
