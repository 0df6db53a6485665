// Where the head's pose puts a vertex. Lengths are decimetres; y is up, z towards the viewer.
uniform mat4 view_projection;
uniform mat4 light_projection;  // of the key light, for its shadows
uniform mat3 head_rotation;
uniform vec3 pivot;             // of the neck
uniform vec3 head_shift;
uniform vec3 body_shift;

// share: how far a vertex follows the head (1) rather than the body (0).
vec3 posed(vec3 place, float share) {
    vec3 turned = head_rotation * (place - pivot) + pivot + head_shift;
    return mix(place, turned, share) + body_shift;
}

vec3 posed_normal(vec3 normal, float share) {
    return mix(normal, head_rotation * normal, share);
}
