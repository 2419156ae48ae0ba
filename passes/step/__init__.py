"""From the forward program to the program of the whole step."""
