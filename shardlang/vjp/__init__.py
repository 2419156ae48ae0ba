"""What autograd does for one call, as ops."""
