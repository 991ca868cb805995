//! Which nodes hold which partitions.
