"""Speed and memory as ratios against a peer, interleaved in the same process: absolute times of a shared machine mean little."""
