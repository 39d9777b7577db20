"""Prediction: any input to a result in its own frame, and results to files."""
