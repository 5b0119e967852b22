"""Places that store blocks: host memory now; disk, object store and GPU memory to come."""
