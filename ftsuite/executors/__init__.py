"""Where stages are computed: in this process, or by workers of this machine."""
