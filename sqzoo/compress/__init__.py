"""Compressed weights tags: weight sharing, bits by layer, Huffman coding; measured and put into the package."""
