"""Transformer pieces that necks and heads share."""
