"""What Trainer and Tuner do: batches, fitting, and the processes that own the devices."""
