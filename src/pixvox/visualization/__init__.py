"""Pictures of results, of training and of scores: they know only ``Segmentation`` and what metrics give."""
