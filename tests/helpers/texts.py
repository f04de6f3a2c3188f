"""Texts of many documents."""

TEXTS = [f"Document {number} says {'word ' * 20}{number}." for number in range(40)]
WIKITEXT = " \n = One = \n \n First . \n = = Part = = \n More . \n = Two = \n \n Second . \n"
