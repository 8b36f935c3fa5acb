"""Bulk labelling: plan, stream units of work over a cluster, commit shards, export."""
