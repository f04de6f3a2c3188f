"""Toys and slow twins that several tests share."""
