"""What watches a run and writes to its folder; nothing here changes what is learned."""
