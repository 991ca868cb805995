//! How pages of partitions become one ordered, complete answer (P7).
