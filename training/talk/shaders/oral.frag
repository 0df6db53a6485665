#version 330
#include "light.glsl"

in vec3 at;
in vec3 facing;
in vec4 in_light;
in vec3 what;

uniform float lip_front;  // z of the lips
uniform float mouth_open;

out vec4 colour;

void main() {
    vec3 view = normalize(camera - at);
    vec3 n = normalize(facing);
    float lit = key_visible(in_light, 0.0035);
    bool is_tooth = what.x < 0.5;
    vec3 albedo = what.x < 1.5 ? vec3(0.52, 0.20, 0.18) : vec3(0.56, 0.19, 0.175);
    if (is_tooth) {
        // Above 1 at the edge: light that enters a tooth elsewhere leaves it there.
        albedo = mix(vec3(1.10, 0.95, 0.70), vec3(1.30, 1.18, 0.97), smoothstep(0.0, 0.6, what.y));
    }
    float open_sky = exp(-3.6 * max(lip_front - 0.06 - what.z, 0.0));
    open_sky *= 0.36 + 0.56 * smoothstep(0.0, 0.25, mouth_open);

    vec3 wrap = vec3(0.4, 0.28, 0.22);
    vec3 key = max((vec3(dot(n, key_direction)) + wrap) / (1.0 + wrap), 0.0);
    vec3 diffuse = key_colour * key * mix(0.22, 1.0, lit);
    diffuse += fill_colour * vec3(1.08, 1.0, 0.88) * max((dot(n, fill_direction) + 0.4) / 1.4, 0.0);
    diffuse += ambient(n) * 0.9;
    float roughness = is_tooth ? 0.22 : 0.3;
    vec3 specular = key_colour * highlight(n, view, key_direction, roughness, 0.045) * lit;
    specular += fill_colour * highlight(n, view, fill_direction, roughness, 0.045);
    colour = vec4(tone_mapped((albedo * diffuse * 0.9 + specular * PI * 0.8) * open_sky), 1.0);
}
