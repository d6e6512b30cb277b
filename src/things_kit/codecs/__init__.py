"""Bytes to typed payloads and back, chosen by the header `content-type`."""
