"""What codecs are built of: byte planes, bit fields, quantisation, entropy coders."""
