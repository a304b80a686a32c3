"""The flight recorder: recent rows are held until a mark or a trigger keeps them, or they expire."""
