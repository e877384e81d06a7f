"""Cases made up by a program, so that the truth of every case is known."""
