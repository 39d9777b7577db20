"""Parameter groups and learning-rate schedules; the optimisers are those of ``torch.optim``."""
