"""One page of pictures from result.json files; imports no torch.

facts   what the files say    charts   pictures    page   HTML
"""
