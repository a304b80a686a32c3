"""The commands `actscope metrics …`, and the timelines that they and `actscope why` ask for."""
