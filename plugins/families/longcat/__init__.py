"""LongCat-Video-Avatar 1.0 and 1.5: the network, its conditions, windows, files and sizes.

Source of all formulas, names and sizes: meituan-longcat/LongCat-Video, commit 6b3f4b8 (MIT). Nothing here registers
anything yet, and nothing outside of this folder imports it.
"""
