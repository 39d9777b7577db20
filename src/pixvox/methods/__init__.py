"""How a model learns: LightningModules around any ``Segmenter``."""
