"""Where a run happens: in this process, or on a network of Flower's SuperLink and SuperNodes."""
