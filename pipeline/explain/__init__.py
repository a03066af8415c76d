"""Where a network looked: pictures beside the mistakes and the answers that changed."""
