"""Report of files of measurements, and of a recording beside them: one HTML file with tables and plots."""
