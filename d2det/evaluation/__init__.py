"""Average precision, error analysis and the plots that show them."""
