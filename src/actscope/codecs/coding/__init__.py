"""Building blocks of codecs: byte planes, bit fields, quantization, entropy coders."""
