"""Experiments beside the main one."""
