"""One typed preset for each row of the paper's tables, and light relatives for small machines."""
