"""The endpoint: one detector behind HTTP, batched, autoscaled, with limits on everything."""
