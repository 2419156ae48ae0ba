"""The intermediate representation: mesh, layouts, reshards and the typed graph."""
