"""What the machine allows: a bare C ring and bare semaphores, built on demand into build/bench."""
