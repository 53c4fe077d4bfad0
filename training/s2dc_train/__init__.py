"""Headless S²DC pretraining with Lightning."""
