"""TensorRT: students compiled for NVIDIA GPUs, by TensorRT or TensorRT for RTX, whichever the card is for."""
