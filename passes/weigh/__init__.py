"""How values lie along one axis, weighed over whole chains of ops."""
