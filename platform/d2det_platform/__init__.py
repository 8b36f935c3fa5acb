"""Everything that needs Ray: training, bulk labelling and the endpoint."""
