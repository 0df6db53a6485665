// A ribbon stands for a lock of hair: a pattern across it, different in each, splits it into hairs towards its tip.
float hairs(vec4 on_strand) {
    float across = on_strand.w;
    return sin(across * 5.5 + on_strand.x * 9.0) + 0.6 * sin(across * 11.0 + on_strand.x * 23.0);
}

bool is_between_hairs(vec4 on_strand) {
    return hairs(on_strand) < (on_strand.z - 0.82) * 11.0 - 1.9;
}
